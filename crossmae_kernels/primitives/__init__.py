"""Steps that several ops share, each in one file: device code and launcher."""
