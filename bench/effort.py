"""How long each measure goes on."""

from dataclasses import dataclass, replace


@dataclass(frozen=True)
class Effort:
    """Times are in seconds."""

    name: str
    block: float
    """One uninterrupted block of one pool, in the measures that take turns in blocks."""
    uncontended_blocks: int
    storm: float
    """One storm of threads on one pool, after its warm-up; longer with slow queries."""
    storm_rounds: int
    task_storm: float
    """One storm of tasks on one pool, after its warm-up; longer where there are many tasks."""
    task_rounds: int
    observed_rounds: int
    observed_storms: int
    observed_storm: float
    """One storm on a pool that is looked at, about once a second."""
    roundtrip_blocks: int
    roundtrip_rounds: int
    """Each with new connections: two processes of a server are never quite alike."""
    restart_rounds: int
    patience: float
    """How long a pool may take for a connection after a restart."""
    growth_rounds: int

    def scaled(self, factor: float) -> "Effort":
        """The same, longer or shorter."""

        def times(count: int) -> int:
            return max(2, round(count * factor))

        return replace(
            self,
            name=f"{self.name} x {factor:g}",
            uncontended_blocks=times(self.uncontended_blocks),
            storm=self.storm * factor,
            task_storm=self.task_storm * factor,
            observed_storms=times(self.observed_storms),
            observed_storm=self.observed_storm * factor,
            roundtrip_blocks=times(self.roundtrip_blocks),
            patience=max(0.2, self.patience * factor),
            growth_rounds=max(1, round(self.growth_rounds * factor)),
        )


FULL = Effort(
    name="full",
    block=0.004,
    uncontended_blocks=200,
    storm=0.4,
    storm_rounds=20,
    task_storm=0.8,
    task_rounds=4,
    observed_rounds=10,
    observed_storms=30,
    observed_storm=1.2,
    roundtrip_blocks=20,
    roundtrip_rounds=30,
    restart_rounds=3,
    patience=30.0,
    growth_rounds=11,
)

QUICK = Effort(
    name="quick",
    block=0.004,
    uncontended_blocks=30,
    storm=0.15,
    storm_rounds=2,
    task_storm=0.2,
    task_rounds=1,
    observed_rounds=2,
    observed_storms=2,
    observed_storm=0.5,
    roundtrip_blocks=15,
    roundtrip_rounds=2,
    restart_rounds=1,
    patience=2.0,
    growth_rounds=3,
)
