"""``python -m hpdl_mpi`` is the ``hpdl`` command."""

from hpdl_mpi.cli.main import main

if __name__ == "__main__":
    main()
