"""Action heads: from a backbone's hidden states to actions."""
