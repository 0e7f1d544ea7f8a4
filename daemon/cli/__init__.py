"""The subcommands, one small file each: ``add`` declares it, ``run`` does it and gives the exit status."""
