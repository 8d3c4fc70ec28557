"""Costs of programs: counted, timed, or compiled ahead of time for other chips."""
