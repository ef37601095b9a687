"""The page on the report's systems: measured, drawn and written from their runs."""
