"""A cursor of outcomes, kept in the application's database."""

from __future__ import annotations

from sqlalchemy import Column, Engine, MetaData, String, Table, Text, select, update


class SqlCursor:
    """A row of the table `fedsvc_cursor`, for `fedsvc_client.outcomes.OutcomeConsumer`."""

    def __init__(
        self,
        engine: Engine,
        name: str = "outcomes",
        *,
        metadata: MetaData | None = None,
        table_name: str = "fedsvc_cursor",
    ) -> None:
        """`name`: of this consumer, if there are several. `metadata`: the application's, so that its
        migrations and `create_all` know the table."""
        self.table = self.define(MetaData() if metadata is None else metadata, table_name)
        self._engine, self._name = engine, name

    @staticmethod
    def define(metadata: MetaData, table_name: str = "fedsvc_cursor") -> Table:
        """The table in `metadata`, as it may be there already."""
        columns = (
            Column("name", String(64), primary_key=True),
            Column("position", Text, nullable=False),
        )
        return Table(table_name, metadata, *columns, keep_existing=True)

    def load(self) -> str:
        where = select(self.table.c.position).where(self.table.c.name == self._name)
        with self._engine.begin() as connection:
            return connection.scalar(where) or ""

    def save(self, cursor: str) -> None:
        t = self.table
        with self._engine.begin() as connection:
            change = update(t).where(t.c.name == self._name).values(position=cursor)
            if not connection.execute(change).rowcount:
                connection.execute(t.insert().values(name=self._name, position=cursor))
