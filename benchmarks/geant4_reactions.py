"""Reactions of hadrons with argon, one by one, simulated with Geant4: the table of `data/physics/hadrons.py`.

    pip install geant4-pybind==0.1.3
    python benchmarks/geant4_reactions.py src/larpanda/data/physics/reactions.npz --seed 7

Geant4's hadronic models of the physics list FTFP_BERT (Bertini's cascade with its evaporation). Particles fly through
liquid argon without losing energy or decaying until they meet a nucleus; what comes out is written down and not
followed. Arrays, for each `name` of `PROJECTILES`:

    {name}_path_mev, {name}_elastic, {name}_inelastic, {name}_capture   energies, and reactions per mm there
    {name}_elastic_mev, {name}_elastic_cos                              elastic scatters, by energy
    {name}_mev, {name}_first                                            reactions, by energy; offsets into
    {name}_kind, {name}_out_mev, {name}_out_cos, {name}_out_phi         what came out: kind, kinetic energy, direction

Directions are relative to the projectile's; `out_phi` is in units of pi / 127. `kind` is 0 photon, 1 electron,
2 positron, 3 pi+, 4 pi-, 5 pi0, 6 proton, 7 neutron, 8 deuteron, 9 triton, 10 He-3, 11 alpha, 12 a heavier nucleus.
A muon at rest may decay in its orbit: then one electron has some MeV.

The wheel downloads Geant4's data tables when it is imported (2 GB). The table in the package was made with stand-ins
for them, since it is to be compared with Geant4 events made with the same: the cascade needs none, but neutron cross
sections below 20 MeV and the photons of excited nuclei come from there (docs/physics.md, "What is crude").
"""

import argparse
import math
import os
from pathlib import Path

import geant4_pybind as g4
import numpy as np

KINDS = (22, 11, -11, 211, -211, 111, 2212, 2112, 1000010020, 1000010030, 1000020030, 1000020040)
NUCLEUS = len(KINDS)
# name: particle, how many reactions; MeV: the lowest, where most of them begin, the highest (None: at rest)
PROJECTILES = {
    "pi+": ("pi+", 12000, (2.0, 20.0, 1500.0)),
    "pi-": ("pi-", 12000, (2.0, 20.0, 1500.0)),
    "proton": ("proton", 12000, (1.0, 10.0, 1500.0)),
    "neutron": ("neutron", 20000, (1e-8, 0.05, 1500.0)),
    "pi-_rest": ("pi-", 2500, None),
    "mu-_rest": ("mu-", 2500, None),
}
PATH_NODES = 160
FLIGHTS = 200_000  # for the mean free paths
INVISIBLE = {12, 14, 16}
ELASTIC, CAPTURE, INELASTIC, NOTHING = range(4)


class Argon(g4.G4VUserDetectorConstruction):
    """A kilometre of liquid argon."""

    def Construct(self):
        argon = g4.G4Material("LAr", 18.0, 39.948 * g4.g / g4.mole, 1.396 * g4.g / g4.cm3)
        self.box = g4.G4Box("argon", 1e6, 1e6, 1e6)
        self.volume = g4.G4LogicalVolume(self.box, argon, "argon")
        self.world = g4.G4PVPlacement(None, g4.G4ThreeVector(), self.volume, "argon", None, False, 0)
        return self.world


class Physics(g4.G4VModularPhysicsList):
    """FTFP_BERT, in which moving hadrons do nothing but react."""

    def ConstructProcess(self):
        parameters = g4.G4EmParameters.Instance()
        parameters.SetGeneralProcessActive(False)
        parameters.SetFluo(False)
        super().ConstructProcess()
        for particle in (g4.G4PionPlus, g4.G4PionMinus, g4.G4Proton, g4.G4Neutron, g4.G4Gamma):
            manager = particle.Definition().GetProcessManager()
            processes = manager.GetProcessList()
            for i in reversed(range(manager.GetProcessListLength())):
                name = processes[i].GetProcessName()
                if name in ("msc", "hIoni", "hBrems", "hPairProd", "CoulombScat", "Decay", "Rayl"):
                    manager.RemoveProcess(i)


class Gun(g4.G4VUserPrimaryGeneratorAction):
    """One particle along z."""

    def __init__(self):
        super().__init__()
        self.gun = g4.G4ParticleGun(1)
        self.gun.SetParticleMomentumDirection(g4.G4ThreeVector(0, 0, 1))

    def aim(self, particle, mev):
        self.gun.SetParticleDefinition(g4.G4ParticleTable.GetParticleTable().FindParticle(particle))
        self.gun.SetParticleEnergy(mev)

    def GeneratePrimaries(self, event):
        self.gun.GeneratePrimaryVertex(event)


class Stacking(g4.G4UserStackingAction):
    """Writes down what is made, and follows none of it."""

    def __init__(self):
        super().__init__()
        self.made = []

    def ClassifyNewTrack(self, track):
        if track.GetParentID() == 0:
            return g4.fUrgent
        pdg, direction = track.GetDefinition().GetPDGEncoding(), track.GetMomentumDirection()
        self.made.append((pdg, track.GetKineticEnergy(), direction.x, direction.y, direction.z))
        return g4.fKill


class Stepping(g4.G4UserSteppingAction):
    """Ends the projectile after its first reaction."""

    def __init__(self):
        super().__init__()
        self.path, self.process, self.cos = 0.0, "", 1.0

    def UserSteppingAction(self, step):
        after, track = step.GetPostStepPoint(), step.GetTrack()
        process, self.path = after.GetProcessDefinedStep().GetProcessName(), track.GetTrackLength()
        if process in ("hadElastic", "nCapture") or process.endswith("Inelastic"):
            self.process = process
            self.cos = after.GetMomentumDirection().z
            track.SetTrackStatus(g4.fStopAndKill)


class Actions(g4.G4VUserActionInitialization):
    def Build(self):
        self.gun, self.stacking, self.stepping = Gun(), Stacking(), Stepping()
        for action in (self.gun, self.stacking, self.stepping):
            self.SetUserAction(action)


def set_up():
    manager = g4.G4RunManagerFactory.CreateRunManager(g4.G4RunManagerType.Serial)
    physics, argon, actions = Physics(), Argon(), Actions()
    for constructor in (
        g4.G4EmStandardPhysics,
        g4.G4DecayPhysics,
        g4.G4HadronPhysicsFTFP_BERT,
        g4.G4StoppingPhysics,
        g4.G4HadronElasticPhysics,
    ):
        physics.RegisterPhysics(constructor())
    physics.SetVerboseLevel(0)
    for part in (argon, physics, actions):
        manager.SetUserInitialization(part)
    manager.Initialize()
    return manager, actions, (argon, physics)


def react(manager, actions, particle, mev):
    """One particle -> the process that ended it, mm on its way, the cosine of its angle, what was made."""
    actions.gun.aim(particle, mev)
    actions.stacking.made, actions.stepping.process = [], ""
    manager.BeamOn(1)
    return actions.stepping, actions.stacking.made


def kind_of(pdg):
    """Number of a particle in the table, None for strange ones."""
    if pdg in KINDS:
        return KINDS.index(pdg)
    return NUCLEUS if pdg > 1_000_000_000 else None


def what_happened(process, made):
    """Geant4's name of a process -> one of the four.

    Nothing: the particle left the argon, or the cascade gave up after some tries and let it go on as it was.
    """
    if process.endswith("Inelastic"):
        return INELASTIC if made else NOTHING
    return {"hadElastic": ELASTIC, "nCapture": CAPTURE}.get(process, NOTHING)


def table(name, manager, actions, rng, report):
    """The arrays of one projectile."""
    particle, n, energies = PROJECTILES[name]
    reactions, elastic, flown, strange = [], [], [], 0
    while len(reactions) < n or (energies and len(flown) < FLIGHTS):
        mev = 0.0
        if energies:
            low, usual, high = energies
            low = usual if rng.random() < 0.8 else low
            mev = float(math.exp(rng.uniform(math.log(low), math.log(high))))
        step, made = react(manager, actions, particle, mev)
        out = [(kind_of(m[0]), *m[1:]) for m in made if abs(m[0]) not in INVISIBLE]
        if any(m[0] is None for m in out):
            strange += 1  # kaons and etas, which the generator does not know: above 0.7 GeV, and rare
        elif energies is None:
            reactions.append((0.0, out))
        elif (happened := what_happened(step.process, made)) == INELASTIC:
            reactions.append((mev, out))
        elif happened == ELASTIC:
            elastic.append((mev, step.cos))
        if energies:
            flown.append((mev, step.path, what_happened(step.process, made)))
    print(f"{name}: {len(flown)} flights, {len(elastic)} elastic, {strange} left out", file=report, flush=True)
    reactions = [reactions[i] for i in rng.permutation(len(reactions))[:n]]
    reactions.sort(key=lambda r: r[0])
    flat = np.array([m for _, out in reactions for m in out])
    result = {
        f"{name}_mev": np.array([r[0] for r in reactions], np.float32),
        f"{name}_first": np.cumsum([0] + [len(out) for _, out in reactions]).astype(np.int32),
        f"{name}_kind": flat[:, 0].astype(np.int8),
        f"{name}_out_mev": flat[:, 1].astype(np.float16),
        f"{name}_out_cos": flat[:, 4].astype(np.float16),
        f"{name}_out_phi": np.round(np.arctan2(flat[:, 3], flat[:, 2]) * (127 / math.pi)).astype(np.int8),
    }
    if energies is None:
        return result
    elastic = np.array(sorted(elastic))
    thin = np.sort(rng.permutation(len(elastic))[: n // 2])
    result |= {
        f"{name}_elastic_mev": elastic[thin, 0].astype(np.float32),
        f"{name}_elastic_cos": elastic[thin, 1].astype(np.float32),
    }
    return result | paths(name, np.array(flown), energies[0], energies[2])


def paths(name, flown, low, high):
    """Reactions per mm at `PATH_NODES` energies: counts over path, in windows of 1.5 spacings on either side."""
    nodes = np.geomspace(low, high, PATH_NODES)
    width = 1.5 * math.log(nodes[1] / nodes[0])
    result = {f"{name}_path_mev": nodes.astype(np.float32)}
    for code, what in ((ELASTIC, "elastic"), (CAPTURE, "capture"), (INELASTIC, "inelastic")):
        rate = []
        for node in nodes:
            near = np.abs(np.log(flown[:, 0] / node)) < width
            weight = 1.0 - np.abs(np.log(flown[near, 0] / node)) / width
            rate.append((weight * (flown[near, 2] == code)).sum() / (weight * flown[near, 1]).sum())
        result[f"{name}_{what}"] = np.array(rate, np.float32)
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--seed", type=int, default=7)
    options = parser.parse_args()
    report = os.fdopen(os.dup(1), "w")
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # Geant4 talks on stdout
    manager, actions, parts = set_up()
    g4.G4Random.setTheSeed(options.seed)
    rng = np.random.default_rng(options.seed)
    arrays = {}
    for name in PROJECTILES:
        arrays |= table(name, manager, actions, rng, report)
        print(
            f"{name}: {len(arrays[f'{name}_mev'])} reactions, {len(arrays[f'{name}_kind'])} particles",
            file=report,
            flush=True,
        )
    np.savez_compressed(options.out, **arrays)
    del parts


if __name__ == "__main__":
    main()
