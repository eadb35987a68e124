"""`vla-agents doctor`: what this machine has of what is needed, and the command for what it lacks; see docs/doctor.md."""
