"""``python -m moecast`` is the command line."""

from moecast.cli import main

if __name__ == "__main__":
    main()
