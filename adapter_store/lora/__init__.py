"""Plain PEFT LoRA folders: written from increments, read back into them, kept by content."""

CONFIG_FILE = "adapter_config.json"
TENSORS_FILE = "adapter_model.safetensors"
ABOUT_FILE = "strata.json"
README_FILE = "README.md"
PICKLE_ADVICE = (
    "a pickle can run code and is never read; save the adapter with safe_serialization=True and pack"
    f" {CONFIG_FILE} and {TENSORS_FILE} only"
)
