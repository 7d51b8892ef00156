"""What fleet and reader share of Kafka."""
