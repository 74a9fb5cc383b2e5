"""aesthetic/cluster, on a small cluster in processes of this machine."""
