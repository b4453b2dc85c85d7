"""What logs hold, what can be learned from them and what to log next, before any training."""

from pipeline.survey.action_cells import CoverageMap
from pipeline.survey.best_actions import Fitted, Learnable, Learned
from pipeline.survey.holdings import Holdings
from pipeline.survey.log_survey import LogSurvey, as_json, run, survey
from pipeline.survey.next_steps import Suggestion
from pipeline.survey.remarks import Remark
from pipeline.survey.short_numbers import short_number
from pipeline.survey.text_pictures import pictures

__all__ = [
    "CoverageMap",
    "Fitted",
    "Holdings",
    "Learnable",
    "Learned",
    "LogSurvey",
    "Remark",
    "Suggestion",
    "as_json",
    "pictures",
    "run",
    "short_number",
    "survey",
]
