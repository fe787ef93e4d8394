"""Measurements that run a peer beside Berm, in one run; and the demonstration of what a node is for."""
