"""Kafka: clients, topics, what comes in, what goes out, what is committed."""
