"""Kafka code shared by readers and workers."""
