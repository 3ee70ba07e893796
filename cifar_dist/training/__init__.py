"""One run: built, trained, evaluated, checkpointed, gone on with. Read engine.py first."""
