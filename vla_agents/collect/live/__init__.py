"""What an operator sees and presses while episodes are recorded: the session, its meters, and its views."""
