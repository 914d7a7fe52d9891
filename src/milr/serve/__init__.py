"""Servers: the critic service."""
