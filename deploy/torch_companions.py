"""Make torch's companions bearable where vLLM brings CUDA builds of them beside a CPU build of torch.

vLLM's LLaVA imports torchvision. Where only the public index answers, torchvision, torchaudio and
torchcodec are CUDA builds, whose compiled parts cannot load beside a CPU torch. Nothing here uses the last
two, but transformers imports what it finds: they are removed. Of torchvision only Python code is used; its
import fails on operators that were never declared. Declared, they stay without an implementation.

Run as a program this file tries the imports and mends only what fails. Copied among the site packages and
imported at every start of that Python, it waits for torchvision and declares the operators first.
"""

from __future__ import annotations

import importlib.abc
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path
from types import ModuleType

_SCHEMAS = (
    "nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
)
_SYMPTOM = "operator torchvision::nms does not exist"
_NOT_LOADED = "Could not load"
_declared: list[object] = []


class _BeforeTorchvision(importlib.abc.MetaPathFinder):
    """Find nothing; declare the operators when torchvision is looked for."""

    def find_spec(self, fullname: str, path: object = None, target: ModuleType | None = None) -> None:  # noqa: ARG002
        if fullname == "torchvision":
            sys.meta_path.remove(self)
            from torch import library

            fragment = library.Library("torchvision", "FRAGMENT")
            for schema in _SCHEMAS:
                fragment.define(schema)
            _declared.append(fragment)


def mend() -> list[str]:
    """Mend or remove what cannot be imported; return what was done."""
    done = []
    if _SYMPTOM in _import_fault("torchvision"):
        packages = Path(sysconfig.get_path("purelib"))
        shutil.copy(__file__, packages / "torch_companions.py")
        (packages / "torch_companions.pth").write_text("import torch_companions\n", encoding="utf-8")
        done.append("torchvision: its operators are declared at every start")
    for unused in ("torchaudio", "torchcodec"):
        if _NOT_LOADED in _import_fault(unused):
            command = [sys.executable, "-m", "pip", "--quiet", "uninstall", "--yes", unused]
            subprocess.run(command, check=True)
            done.append(f"{unused}: removed, it cannot load beside this torch and is not used")
    return done


def _import_fault(name: str) -> str:
    tried = subprocess.run(
        [sys.executable, "-c", f"import {name}"], capture_output=True, text=True, check=False
    )
    return tried.stderr if tried.returncode else ""


if __name__ == "__main__":
    sys.stdout.writelines(f"{line}\n" for line in mend())
else:
    sys.meta_path.insert(0, _BeforeTorchvision())
