"""The commands: parse, hand over, and turn what happened into an exit status."""
