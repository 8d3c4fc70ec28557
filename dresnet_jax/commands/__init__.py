"""The commands: each reads its flags, calls the library, and prints what came of it."""

# In the order in which a person needs them.
COMMANDS = (
    *("train", "evaluate", "predict", "export", "convert"),
    *("compare", "analyze", "preview", "plan", "benchmark"),
    *("prune", "discretise", "evolve", "prepare"),
    *("configs", "models", "completion"),
)
