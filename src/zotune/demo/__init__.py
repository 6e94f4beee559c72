"""What `zotune demo` needs: a small real model and a small real data set, fetched once and cached."""
