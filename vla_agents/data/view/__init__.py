"""A page to look at datasets with: pictures of all cameras, curves, times and findings, in step."""

from vla_agents.data.view.content import Content
from vla_agents.data.view.export import export
from vla_agents.data.view.server import Viewer

__all__ = ["Content", "Viewer", "export"]
