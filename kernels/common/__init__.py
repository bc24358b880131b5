"""What every operation needs: `dtypes`, the `checks` of its arguments, and the `path`, the choice of what runs."""
