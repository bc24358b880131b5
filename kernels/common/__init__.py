"""What all operations need: accepted `dtypes`, `checks` of arguments, and the choice of the `path` that runs."""
