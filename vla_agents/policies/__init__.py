"""Policies: a backbone that reads pictures and words, a head that gives chunks of actions."""
