"""Images from files, addresses and data URIs."""
