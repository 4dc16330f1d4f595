"""Grafana's boards, described in Python; ``python -m deploy.grafana.boards`` writes them as files."""
