"""What spoils a dataset, found before training does: `check_dataset(open_dataset(path))`."""

from vla_agents.data.check.findings import SEVERITIES, Finding, Report
from vla_agents.data.check.run import check_dataset, copy_without

__all__ = ["SEVERITIES", "Finding", "Report", "check_dataset", "copy_without"]
