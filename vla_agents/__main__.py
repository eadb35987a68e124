"""`python -m vla_agents ...` is `vla-agents ...`."""

from __future__ import annotations

import sys

from vla_agents.cli import main

if __name__ == "__main__":
    sys.exit(main())
