"""What increments cost a vLLM server, beside the bare base, vLLM's native LoRA and PEFT."""
