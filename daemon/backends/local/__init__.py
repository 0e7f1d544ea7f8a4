"""Workers that are processes of this host."""
