"""The commands of ``crossmae``, one per file, and the command line that parses their options."""
