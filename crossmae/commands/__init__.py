"""The commands of ``crossmae``, one in a file, and the command line that reads their options."""
