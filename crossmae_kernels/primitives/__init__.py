"""Steps that several ops share: device code and launcher of one in one file."""
