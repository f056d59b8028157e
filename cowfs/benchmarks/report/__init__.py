"""A result for people: `text` for terminals, `table` as CSV, `page` as one HTML file, with `charts`."""
