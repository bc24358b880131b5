"""TACAF: visible-infrared person re-identification. Importing this package imports none of its modules."""

__all__ = ["__version__"]

__version__: str


def __getattr__(name: str) -> str:
    if name == "__version__":
        from importlib import metadata

        try:
            return metadata.version("tacaf")
        except metadata.PackageNotFoundError:  # the checkout is only on the path
            return "unknown"
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
