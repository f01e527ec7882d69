"""Database access for SQLite and PostgreSQL: connections, tables, migrations, rights, views. No feature lives here."""
