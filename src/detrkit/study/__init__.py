"""Studies: several models under one budget, in one table."""

from detrkit.study.config import StudyConfig, load_study, studies
from detrkit.study.running import StudyResult, run_study

__all__ = ["StudyConfig", "StudyResult", "load_study", "run_study", "studies"]
