"""Training: budgets, one plain loop, and artifacts on disk."""

from course_utils.profiles import PROFILES, Budget, Profile, get_profile
from course_utils.training.loop import History, TrainingDiverged, train
from course_utils.weights.artifacts import load_artifact, load_model, save_artifact

__all__ = [
    "PROFILES",
    "Budget",
    "History",
    "Profile",
    "TrainingDiverged",
    "get_profile",
    "load_artifact",
    "load_model",
    "save_artifact",
    "train",
]
