"""The commands: each reads its flags, calls the library, and prints what came of it."""
