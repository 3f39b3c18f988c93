"""The commands, one file each, and the dispatcher."""
