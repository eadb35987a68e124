"""Closed-loop evaluation: fixed seeds, success with intervals, tables, pages and videos."""

from vla_agents.eval.evaluate import EvalConfig, PolicyEvaluator, evaluate, run_eval
from vla_agents.eval.page import Section, write_page
from vla_agents.eval.report import EvalReport, Timing
from vla_agents.eval.stats import Aggregate, aggregate, by_task, wilson
from vla_agents.eval.video import Clip, VideoRecorder, write_gif, write_video

__all__ = [
    "Aggregate",
    "Clip",
    "EvalConfig",
    "EvalReport",
    "PolicyEvaluator",
    "Section",
    "Timing",
    "VideoRecorder",
    "aggregate",
    "by_task",
    "evaluate",
    "run_eval",
    "wilson",
    "write_gif",
    "write_page",
    "write_video",
]
