"""The command `fedsvc`."""

from fedsvc.quick_start import hasten

hasten()

from fedsvc.cli.main import main  # noqa: E402

if __name__ == "__main__":
    main()

__all__ = ["main"]
