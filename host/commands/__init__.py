"""The host's commands that work on its files, one file each."""
