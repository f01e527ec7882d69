"""Notifications: events rendered as messages and delivered to webhooks and mailboxes."""
