"""One module per runtime. Each imports its vendor's package inside functions only, so importing a backend is free."""
