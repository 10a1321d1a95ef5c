"""The guard of the weights: finds updates that dpmodel did not make, and records a violation."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any, NoReturn

from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.optimizer import register_optimizer_step_post_hook

from dpmodel.claims.claim import FRESH_WEIGHTS
from dpmodel.claims.snapshot import COPIED_BYTES, Snapshot, digest
from dpmodel.claims.structure import Places, Structure, put_in_place
from dpmodel.preflight.refusal import HAS_READ, MOST_LISTED, listed, say_also
from dpmodel.training.late_comparisons import LateComparison, LateComparisons
from mechanisms.engines.batch import costs_a_wait
from mechanisms.engines.parameters import trainable_parameters
from monitors.errors import DataError, UnprotectedUpdateError

#: Large networks are compared entry by entry once in this many steps, before each validation and at the end.
COMPARED_STEPS = 100

#: Networks of up to this many bytes keep a digest of every step; larger ones, of the steps that are compared in full.
DIGESTED_BYTES = 2**14
KEPT_DIGESTS = 100_000

#: Prefix of the names of the loss's tensors.
_LOSS = "(loss)"

_DECLARE = (
    "If the change does not depend on private data, make it inside `with run.post_processing('what it is'):`, or "
    "between two calls of fit"
)


class UpdateGuard:
    """Compares the network and the optimizer with their state after the last protected update.

    Guarantees. A change of any entry through torch is found before the next step, and so is any change in small
    networks (``COMPARED_BYTES``). In larger networks, a write that bypasses torch (``.data``, NumPy) is found before
    the next step if it covers a whole tensor; if it covers a few entries, it is found in one step of
    ``COMPARED_STEPS``, before each validation and at the end. If a step has been released, a change is reported through
    ``violated`` before the error is raised, whether or not the error is caught. Modules, hooks and gradients are
    compared too. Values of an earlier step are accepted.

    On a GPU, the host does not wait for comparisons. The result of one that is made before the passes is read after
    them, before the release; that of one made after the passes, before the next release, and before anything is saved.
    Then a write of the passes past torch cannot be undone.

    Args:
        network: The network that is trained.
        optimizer: Its optimizer.
        loss_fn: The loss; buffers and parameters of a loss module are compared too.
        violated: Called with the reason if the claim is void. Default: nothing is called.
    """

    def __init__(
        self,
        network: nn.Module,
        optimizer: Optimizer,
        loss_fn: object = None,
        violated: Callable[[str], None] | None = None,
    ) -> None:
        self.network = network
        self.optimizer = optimizer
        self._roots = {"": network} | ({_LOSS: loss_fn} if isinstance(loss_fn, nn.Module) else {})
        #: The trainable parameters by name.
        self.parameters = trainable_parameters(network)
        self._known = {id(parameter) for parameter in self.parameters.values()}
        self._violated = violated
        self._reason: str | None = None
        self._steps = 0
        self._due = True
        self._whole = 0  # the last step at which every entry was compared
        self._done: int | None = None  # protected steps of the model; None before the first of this training
        self._earlier: dict[int, None] = {}
        self._ahead = any(map(costs_a_wait, self.parameters.values()))  # whether the host runs ahead of the device
        self._late = LateComparisons()
        self._trained = Snapshot(self.parameters)
        self._state = Snapshot(self._optimizer_state(), copied=False)
        held = sum(value.numel() * value.element_size() for value in self.parameters.values())
        self._digests_each = held <= DIGESTED_BYTES
        _GUARDS.add(self)
        self.protected()

    @property
    def description(self) -> str:
        """What is verified, for the report."""
        if self._trained.compared_in_full:
            return "every entry, before and after the passes of each step"
        way = "copied after each step" if self._trained.copied else f"too large to copy ({COPIED_BYTES:,} bytes)"
        return (
            f"a secret part of each tensor before and after the passes of each step, every entry in one step of "
            f"{COMPARED_STEPS}, before each validation and at the end ({way})"
        )

    def check(self) -> None:
        """Call before each step.

        Raises:
            UnprotectedUpdateError: There is a gradient, an update or a parameter that dpmodel did not make; names it.
        """
        self._require_sound()
        self._require_same_values(values=self._compared_in_full and not self._ahead, thorough=self._due)
        if self._ahead:
            self._late.queue(None, self._trained, self._fixed)
            self._late.queue(None, self._state, of_optimizer=True)
        self._require_untouched()

    @contextmanager
    def forward_pass(self, step: int, written: list[str]) -> Iterator[None]:
        """Use around the passes over private data.

        If the passes write to the network and there is a copy, the values are restored and the claim still holds.

        Args:
            step: Number of the step in the life of the model.
            written: Filled inside with the names of tensors that an engine has restored itself after an example.

        Raises:
            UnprotectedUpdateError: The passes changed a parameter or a buffer, which would keep something of the data.
        """
        written.clear()
        try:
            with self.each_example_alone(step):
                yield
        except BaseException:
            with suppress(UnprotectedUpdateError):  # the first failure is raised; the ledger has the rest
                self.read_late()
            self._put_back(self._changed_tensors())
            raise
        self.read_late()
        changed = self._changed_tensors(values=not self._ahead, thorough=self._due)
        if changed and self._ahead:  # to put values back, all must be known
            changed = self._changed_tensors(thorough=self._due)
        if changed or written:
            found = f"the forward pass changed {listed(map(repr, changed or dict.fromkeys(written)))}"
            # A write without a trace may be from a callback, or from an earlier pass that was not compared in full.
            seen_at_once = self._done is None or self._compared_in_full or self._left_traces(changed)
            harmless = not changed or (self._put_back(changed) and seen_at_once)
            raise UnprotectedUpdateError(
                f"{found}: what it keeps of the data has no noise, is not accounted for, and would be saved with the "
                "weights. Use a layer that keeps no statistics of the data. "
                + (f"The values were restored. {HAS_READ}" if harmless else self._record(found, self._verified(step)))
            )
        if self._ahead:
            self._late.queue(step, self._trained, self._fixed)
        self._require_untouched()
        if self._due:
            self._whole, self._due = step, False

    @contextmanager
    def each_example_alone(self, step: int) -> Iterator[None]:
        """Use around checks that each example moves the sum by its own gradient only.

        If this fails in one step, it held in none: network, loss and collation were the same.

        Args:
            step: Number of the step in the life of the model.
        """
        try:
            yield
        except (UnprotectedUpdateError, DataError) as error:
            if not step:
                say_also(error, HAS_READ)
            elif self._reason is None:
                say_also(error, self._record(str(error).split(". ")[0], 0))
            raise

    @contextmanager
    def update(self, step: int) -> Iterator[None]:
        """Use around the protected update of step ``step``: the state afterwards is accounted for."""
        self._done = step + 1
        try:
            yield
        finally:  # an interrupted update has moved the weights by a noised gradient too
            self._take()
            self._due = self._due or self._done % COMPARED_STEPS == 0
            if self._due or self._digests_each:
                self._remember()

    def protected(self, steps: int | None = None) -> None:
        """Accept the present state as accounted for: before a training, or after its state was restored.

        Args:
            steps: Steps of the model in the restored weights. Default: this training has taken none.
        """
        self._done = steps or self._done
        self._whole = steps or self._whole
        self._survey()
        self._take_fixed()
        self._take()
        self._remember()

    def read_late(self) -> None:
        """Read the comparisons that are still on their way, before weights are saved; raise as ``check`` does."""
        differing = self._late.differing()
        if differing and self._reason is None:
            self._require_explained(differing)
        self._late.forget()

    def settle(self) -> None:
        """Call between two steps at which callbacks may copy, average or exchange the weights.

        Raises:
            UnprotectedUpdateError: As in ``check``.
        """
        self._require_sound()
        self._require_all_same()
        self._remember()

    @contextmanager
    def declared(self) -> Iterator[None]:
        """Accept changes inside the block: they are declared not to depend on the private data.

        Raises:
            UnprotectedUpdateError: Something was changed before the block.
        """
        self._require_sound()
        self.read_late()
        self._require_same_values()
        yield
        self._take_fixed()
        self._take()
        self._remember()

    @contextmanager
    def until_the_end(self) -> Iterator[None]:
        """Use around a training and its last callbacks; everything is compared once more at the end.

        Raises:
            UnprotectedUpdateError: Something was changed after the last step, or the claim is void and an earlier error
                was caught.
        """
        try:
            yield
        except BaseException:
            with suppress(UnprotectedUpdateError):  # the first failure is raised; the ledger has the rest
                self._require_all_same()
            raise
        self._require_sound()
        self._require_all_same()

    def stepped(self, optimizer: Optimizer) -> None:
        """Call after each step of any optimizer."""
        if any(id(value) in self._known for group in optimizer.param_groups for value in group["params"]):
            self._steps += 1

    def _require_sound(self) -> None:
        if self._reason is not None:
            raise UnprotectedUpdateError(f"training does not continue: {self._reason}. To train again, {FRESH_WEIGHTS}")

    def _require_same_values(self, *, values: bool = True, thorough: bool = False) -> None:
        # A fused optimizer step does not raise versions.
        changed = self._changed(values=values, thorough=thorough or self._steps != self._counted)
        if changed and self._ahead and not values:  # to take weights takes the optimizer's state, too
            changed = self._changed(thorough=True)
        if changed:
            self._require_earlier_weights(changed)

    def _require_earlier_weights(self, changed: list[str], *, undone: bool = False) -> None:
        if not undone and self._are_earlier_weights(changed):
            self._take()
            return
        when = "before the first step" if self._done is None else "between two private steps"
        cause = "by an optimizer.step() or load_state_dict() outside of dpmodel, or a replaced or added layer?"
        self._refuse(f"{listed(map(repr, changed))} changed {when}", f" ({cause}). {_DECLARE}", self._done or 0)

    def _require_all_same(self) -> None:
        self.read_late()
        self._require_same_values(thorough=True)

    def _require_explained(self, differing: list[LateComparison]) -> None:
        """Accept weights of an earlier step; any other change is refused, even if it has been undone since."""
        in_passes = [one.step for one in differing if one.step is not None]
        if in_passes:
            cause = "past torch (by .data or NumPy?): what they keep of the data has no noise and is not accounted for"
            self._refuse(f"values changed during the passes of step {in_passes[0]}", f", {cause}", in_passes[0])
        changed = list(dict.fromkeys(name for one in differing for name in one.changed()))
        # Passes may write to the state of an optimizer that keeps views of the sum.
        undone = any(one.has_been_undone() for one in differing if not one.of_optimizer)
        if undone or changed:
            self._require_earlier_weights(changed, undone=undone)

    def _refuse(self, found: str, advice: str, step: int) -> NoReturn:
        """Record a violation if there was a release. Before it, everything was verified up to ``step`` at most."""
        since = min([step, *(one.step for one in self._late.differing() if one.step is not None)])
        released = self._done is not None and self._reason is None
        consequence = self._record(found, self._verified(since)) if released else ""
        raise UnprotectedUpdateError(f"{found}{advice}. {consequence}".rstrip(". "))

    def _require_untouched(self) -> None:
        """Compare structure and gradients; call it after the tensors were compared."""
        flags = [value.requires_grad for value in self._updated]
        if flags != self._flags or not self._intact or self._structure.changed():
            self._require_same_structure()
        for name, value in self._named_updated:
            if value.grad is not None:
                raise UnprotectedUpdateError(
                    f"parameter {name!r} has a gradient that dpmodel did not make (from a backward() outside?): it is "
                    "not clipped, noised or accounted for. Call optimizer.zero_grad(set_to_none=True) first"
                )

    def _require_same_structure(self) -> None:
        current = trainable_parameters(self.network)
        names = sorted(current.keys() ^ self.parameters.keys())
        changes = [f"trainable parameters changed during training: {', '.join(names)}"] if names else []
        changes += self._structure.changes()
        if changes:
            raise UnprotectedUpdateError(
                f"the network is not the one that was checked before training: {'; '.join(changes[:MOST_LISTED])}. "
                "Add, replace, freeze or unfreeze layers and register hooks between two calls of fit, and give the "
                "optimizer the same parameters"
            )

    def _changed(self, *, values: bool = True, thorough: bool = False) -> list[str]:
        """Names of tensors that were replaced or have changed since the last protected update."""
        changed = self._changed_state(values=values or not self._ahead, thorough=thorough)
        return self._changed_tensors(values=values, thorough=thorough) + changed

    def _changed_state(self, *, values: bool = True, thorough: bool = False) -> list[str]:
        """``_changed`` of the optimizer; its state may hold views of the sum, to which passes write."""
        state = self._optimizer_state()
        moved = [name for name in self._state.changed(state, values=values, thorough=thorough) if name in state]
        # A state that was removed or set to zero holds nothing of the data.
        found = [name for name in moved if bool(state[name].any())]
        if moved and not found:
            self._state = Snapshot(state, copied=False)
        return found

    def _changed_tensors(self, *, values: bool = True, thorough: bool = False) -> list[str]:
        """``_changed`` without the optimizer."""
        self._intact = self._places.intact()
        if self._intact:
            return [
                *self._trained.changed(values=values, thorough=thorough),
                *self._fixed.changed(values=values, thorough=thorough),
            ]
        current = dict(self.network.named_parameters())
        trained = {name: current[name] for name in self.parameters if name in current}
        fixed = self._fixed_tensors()
        found = self._trained.changed(trained, thorough=thorough) + self._fixed.changed(fixed, thorough=thorough)
        return [name for name in dict.fromkeys(found) if name in trained or name in fixed]

    def _left_traces(self, changed: list[str]) -> bool:
        current = {**self._fixed_tensors(), **dict(self.network.named_parameters())}
        return all(
            (self._trained if name in self.parameters else self._fixed).written(name, current.get(name))
            for name in changed
        )

    def _are_earlier_weights(self, changed: list[str]) -> bool:
        current = dict(self.network.named_parameters())
        if any(name not in self.parameters or current[name] is not self.parameters[name] for name in changed):
            return False
        return digest(self.parameters.values()) in self._earlier

    def _put_back(self, names: list[str]) -> bool:
        """Undo the changes to ``names``; False if there is no copy of one."""
        kept = {name: self._trained.tensor(name) for name in names if name in self.parameters}
        kept |= {name: self._fixed.tensor(name) for name in names if name not in self.parameters}
        for name, value in kept.items():
            put_in_place(self._roots, name, value)
        trained = [name for name, value in kept.items() if value is not None and name in self.parameters]
        fixed = [name for name, value in kept.items() if value is not None and name not in self.parameters]
        return self._trained.restore(trained) and self._fixed.restore(fixed)

    @property
    def _compared_in_full(self) -> bool:
        return self._trained.compared_in_full and self._fixed.compared_in_full

    def _verified(self, step: int) -> int:
        """The last step, up to ``step``, after which every entry is known to have been protected."""
        return step if self._compared_in_full else min(step, self._whole)

    def _record(self, found: str, since: int) -> str:
        """Record the violation, and return a sentence about it."""
        reason = f"{found}; not verified since step {since}"
        if self._violated is not None:
            self._violated(reason)
        self._reason = reason
        return f"The privacy claim is void since step {since}: epsilon is infinite. To train again, {FRESH_WEIGHTS}"

    def _take_fixed(self) -> None:
        self._fixed = Snapshot(self._fixed_tensors())
        if not self._fixed.copied:
            self._fixed.keep_digest()

    def _take(self) -> None:
        for parameter in self._updated:
            parameter.grad = None
        self._trained.take()
        state = self._optimizer_state()
        if self._state.holds(state):
            self._state.take()
        else:
            self._state = Snapshot(state, copied=False)
        self._counted = self._steps

    def _remember(self) -> None:
        self._earlier[self._trained.keep_digest()] = None
        if len(self._earlier) > KEPT_DIGESTS:
            del self._earlier[next(iter(self._earlier))]

    def _fixed_tensors(self) -> dict[str, Tensor]:
        """Frozen parameters, buffers, and what the loss holds, by name."""
        found: dict[str, Tensor] = {}
        for prefix, root in self._roots.items():
            found.update(root.named_parameters(prefix))
            found.update(root.named_buffers(prefix))
        # A loss may hold weights of the network; these are trained under their name in the network.
        return {name: value for name, value in found.items() if id(value) not in self._known}

    def _optimizer_state(self) -> dict[str, Tensor]:
        return {
            f"the optimizer's {key} of {name}": value
            for name, parameter in self.parameters.items()
            for key, value in self.optimizer.state.get(parameter, {}).items()
            if isinstance(value, Tensor) and value.numel() > 1
        }

    def _survey(self) -> None:
        """Record modules, places and parameters, so that a step need not search for them."""
        self._structure = Structure(self._roots, self.optimizer)
        self._places = Places(self._roots.values())
        # Frozen parameters too: an optimizer uses any gradient that it finds, whatever requires_grad says.
        self._named_updated = list(self.network.named_parameters())
        for group in self.optimizer.param_groups:
            self._named_updated += [("of the optimizer alone", value) for value in group["params"]]
        self._updated = [value for _, value in self._named_updated]
        self._flags = [value.requires_grad for value in self._updated]


#: The living guards. One hook serves them all and stays: removing a hook when its guard is collected, perhaps in the
#: middle of an optimizer's step, would change the hooks that the step iterates over.
_GUARDS: weakref.WeakSet[UpdateGuard] = weakref.WeakSet()


def tell_guards(optimizer: Optimizer, args: Any, kwargs: Any) -> None:
    """Tell all guards that an optimizer has taken a step."""
    del args, kwargs
    for guard in tuple(_GUARDS):
        guard.stepped(optimizer)


register_optimizer_step_post_hook(tell_guards)
