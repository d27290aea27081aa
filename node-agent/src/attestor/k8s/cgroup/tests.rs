use proptest::prelude::*;

use super::*;

const POD: &str = "2c48913c-b29f-11e7-9350-020968147796";
const SLICE_UID: &str = "2c48913c_b29f_11e7_9350_020968147796";
const ID: &str = "9bca8d63d5fa610783847915bcff0ecac1273e5b4bed3f6fa1b07350e0135961";
const OTHER: &str = "34a2062fd26c805aa8cf814cdfe479322b791f80afb9ea4db02d50375df14b41";
const OTHER_POD: &str = "a2830d0d-b0f0-4ff0-81b5-0ee4e299cf80";

fn ours() -> Container {
    Container { id: ID.into(), pod_uid: POD.into() }
}

fn found(path: &str) -> Option<Container> {
    Top::default().container(format!("0::{path}\n").as_bytes()).unwrap()
}

#[test]
fn each_runtime_and_driver_has_its_shape() {
    for path in [
        // cgroupfs: of each class of service.
        format!("/kubepods/pod{POD}/{ID}"),
        format!("/kubepods/burstable/pod{POD}/{ID}"),
        format!("/kubepods/besteffort/pod{POD}/crio-{ID}"),
        format!("/kubepods/kubepods/besteffort/pod{POD}/{ID}"),
        format!("/kubelet/kubepods/pod{POD}/{ID}"),
        // systemd.
        format!("/kubepods.slice/kubepods-pod{SLICE_UID}.slice/cri-containerd-{ID}.scope"),
        format!("/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod{SLICE_UID}.slice/crio-{ID}.scope"),
        format!("/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod{POD}.slice/docker-{ID}.scope"),
        format!(
            "/kubelet.slice/kubelet-kubepods.slice/kubelet-kubepods-besteffort.slice/\
             kubelet-kubepods-besteffort-pod{SLICE_UID}.slice/cri-containerd-{ID}.scope"
        ),
        // runc without systemd below a kubelet with it.
        format!("/kubepods-besteffort-pod{SLICE_UID}.slice:cri-containerd:{ID}"),
        // From another cgroup namespace.
        format!("/../../../burstable/pod{POD}/{ID}"),
        format!("/../../pod{POD}/{ID}"),
        format!("/../../kubepods-burstable-pod{SLICE_UID}.slice/cri-containerd-{ID}.scope"),
        format!("/../../../kubepods-besteffort.slice/kubepods-besteffort-pod{SLICE_UID}.slice/crio-{ID}.scope"),
    ] {
        assert_eq!(found(&path), Some(ours()), "{path}");
        // What a container makes below itself.
        for below in ["/init", "/container", "/system.slice/web.service", "/payload (deleted)"] {
            assert_eq!(found(&format!("{path}{below}")), Some(ours()), "{path}{below}");
        }
    }
}

#[test]
fn a_static_pod_has_a_hash_for_its_uid() {
    let hash = "2732ca68f6358eba7703fb6f82a25c94";
    let container = Container { id: ID.into(), pod_uid: hash.into() };
    assert_eq!(found(&format!("/kubepods/burstable/pod{hash}/{ID}")), Some(container.clone()));
    let slice = format!("/kubepods.slice/kubepods-pod{hash}.slice/cri-containerd-{ID}.scope");
    assert_eq!(found(&slice), Some(container));
}

#[test]
fn what_is_in_no_container_is_in_none() {
    for path in [
        "/".to_owned(),
        "/init.scope".into(),
        "/user.slice/user-1000.slice/session-2.scope".into(),
        "/system.slice/containerd.service".into(),
        format!("/kubepods/pod{POD}"),
        format!("/kubepods/{ID}"),
        format!("/{ID}"),
        format!("/docker/{ID}"),
        format!("/system.slice/docker-{ID}.scope"),
        // The watchman of a container, in its own place and in the pod's.
        format!("/system.slice/crio-conmon-{ID}.scope"),
        format!("/kubepods.slice/kubepods-pod{SLICE_UID}.slice/crio-conmon-{ID}.scope"),
        // Of another container of the agent's own pod, and of the agent's own.
        format!("/../cri-containerd-{ID}.scope"),
        format!("/../{ID}"),
        // Ended, its cgroup is removed: nobody's any more.
        format!("/kubepods/pod{POD}/{ID} (deleted)"),
        format!("/kubepods/pod{POD}/{}", ID.to_uppercase()),
        format!("/kubepods/pod{POD}/{ID}0"),
        format!("/kubepods/pod{POD}0/{ID}"),
        format!("/system.slice/system-pod{SLICE_UID}.slice/cri-containerd-{ID}.scope"),
    ] {
        assert_eq!(found(&path), None, "{path}");
    }
    assert_eq!(Top::default().container(b""), Ok(None));
    assert_eq!(Top::default().container(b"0:\n:\nx"), Ok(None));
}

#[test]
fn a_pod_that_somebody_makes_up_below_what_is_his_is_none() {
    let forged = format!("kubepods.slice/kubepods-pod{SLICE_UID}.slice/cri-containerd-{ID}.scope");
    for above in [
        "/user.slice/user-1000.slice/user@1000.service",
        "/system.slice/web.service",
        "/../../../../user.slice/user-1000.slice/user@1000.service",
        "/machine.slice/libpod-0123.scope",
        "/lxc.payload.guest",
    ] {
        assert_eq!(found(&format!("{above}/{forged}")), None, "{above}");
        assert_eq!(found(&format!("{above}/kubepods/pod{POD}/{ID}")), None, "{above}");
    }
    assert_eq!(found(&format!("/system.slice/docker-{OTHER}.scope/{forged}")), None);
    assert_eq!(found(&format!("/docker/{OTHER}/{forged}")), None);
    assert_eq!(found(&format!("/../cri-containerd-{OTHER}.scope/{forged}")), None);
}

#[test]
fn the_outermost_container_counts() {
    let inner = format!("kubepods/burstable/pod{OTHER_POD}/{OTHER}");
    assert_eq!(found(&format!("/kubepods/pod{POD}/{ID}/{inner}")), Some(ours()));
    assert_eq!(found(&format!("/kubepods/pod{POD}/{ID}/docker/{OTHER}/{inner}")), Some(ours()));
    let scope = format!("/kubepods.slice/kubepods-pod{SLICE_UID}.slice/cri-containerd-{ID}.scope");
    assert_eq!(
        found(&format!("{scope}/kubepods.slice/kubepods-pod{OTHER_POD}.slice/docker-{OTHER}.scope")),
        Some(ours())
    );
}

#[test]
fn a_cluster_in_a_container_is_known_by_the_agents_own_place() {
    let node = format!("/docker/{OTHER}");
    let agent = format!("11:pids:{node}/kubelet/kubepods/besteffort/pod{OTHER_POD}/{OTHER}\n0::{node}/system.slice\n");
    let top = Top::of_agent(agent.as_bytes());
    let file = format!("12:pids:{node}/kubelet/kubepods/pod{POD}/{ID}\n0::{node}/system.slice/containerd.service\n");
    assert_eq!(top.container(file.as_bytes()), Ok(Some(ours())));
    // Of the machine itself, and of another such cluster.
    assert_eq!(top.container(format!("1:pids:/kubepods/pod{POD}/{ID}\n").as_bytes()), Ok(None));
    assert_eq!(top.container(format!("1:pids:/docker/{ID}/kubepods/pod{POD}/{ID}\n").as_bytes()), Ok(None));
    // A whole cluster in a pod of another: the agent is of the inner one.
    let outer = format!("/kubepods/pod{OTHER_POD}/{OTHER}");
    let top = Top::of_agent(format!("1:pids:{outer}/kubepods/pod{OTHER_POD}/{OTHER}\n").as_bytes());
    assert_eq!(top.container(format!("1:pids:{outer}/kubepods/pod{POD}/{ID}\n").as_bytes()), Ok(Some(ours())));
    assert_eq!(top.container(format!("1:pids:/kubepods/pod{POD}/{ID}\n").as_bytes()), Ok(None));
}

#[test]
fn an_agent_in_no_pod_or_in_a_namespace_of_its_own_has_nothing_above() {
    let slice = format!("0::/kubepods.slice/kubepods-pod{SLICE_UID}.slice/cri-containerd-{ID}.scope\n");
    for own in ["0::/\n", "0::/system.slice/chancery-agent.service\n", "", &slice, "0::/../../pod/x\n"] {
        assert_eq!(Top::of_agent(own.as_bytes()), Top::default(), "{own}");
    }
    let beside = format!("0::/../docker/kubepods/pod{POD}/{ID}\n");
    assert_eq!(Top::of_agent(beside.as_bytes()), Top::default());
}

#[test]
fn all_hierarchies_have_to_agree() {
    let line = |number: u8, id: &str| format!("{number}:pids:/kubepods/pod{POD}/{id}\n");
    let both = |a: &str, b: &str| Top::default().container(format!("{}{}", line(9, a), line(8, b)).as_bytes());
    assert_eq!(both(ID, ID), Ok(Some(ours())));
    let error = both(ID, OTHER).unwrap_err();
    assert!(error.to_string().contains(ID) && error.to_string().contains("neither"), "{error}");
    // The others say nothing: of containerd itself, of the root, and of a controller with a colon in its path.
    let file = format!("{}3:rdma:/\n1:name=systemd:/a:b\n0::/system.slice/containerd.service\n", line(9, ID));
    assert_eq!(Top::default().container(file.as_bytes()), Ok(Some(ours())));
}

proptest! {
    #[test]
    fn nothing_panics(own: Vec<u8>, file: Vec<u8>) {
        let _ = Top::of_agent(&own).container(&file);
    }

    #[test]
    fn whoever_is_in_a_container_stays_in_it_whatever_he_makes_below(
        below in "(/(kubepods|kubepods\\.slice|pod2c48913c-b29f-11e7-9350-020968147796|[0-9a-f]{64}|[^/\n]{0,8})){0,6}",
        bytes in prop::collection::vec(any::<u8>().prop_filter("the kernel refuses it", |byte| *byte != b'\n'), 0..40),
    ) {
        for root in [
            format!("/kubepods/burstable/pod{POD}/{ID}"),
            format!("/../../kubepods-pod{SLICE_UID}.slice/crio-{ID}.scope"),
        ] {
            let mut file = format!("0::{root}{below}/").into_bytes();
            file.extend(&bytes);
            prop_assert_eq!(Top::default().container(&file), Ok(Some(ours())));
        }
    }

    #[test]
    fn what_is_below_a_service_or_a_scope_is_no_pod(
        slices in "(/[a-z-]{1,8}\\.slice){0,3}", unit in "[a-z0-9@]{1,8}\\.(service|scope)",
        below in "(/(kubepods|kubepods\\.slice|burstable|x)){0,3}",
    ) {
        let path = format!("{slices}/{unit}{below}/pod{POD}/{ID}");
        prop_assert_eq!(found(&path), None);
    }
}

#[test]
fn what_looks_like_a_pod_where_none_is_believed_is_told() {
    let pod = "2c48913c-b29f-11e7-9350-020968147796";
    let under = pod.replace('-', "_");
    let misplaced = |top: &Top, path: &str| {
        let file = format!("0::{path}\n");
        assert_eq!(top.container(file.as_bytes()), Ok(None), "{path}");
        top.misplaced(file.as_bytes())
    };
    let top = Top::default();
    let id = "a".repeat(64);
    let path = format!("/x/kubepods/pod{pod}/{id}");
    assert_eq!(misplaced(&top, &path).as_deref(), Some("x/kubepods"));
    let path = format!("/system.slice/containerd.service/kubepods-burstable-pod{under}.slice:cri-containerd:{id}");
    assert_eq!(misplaced(&top, &path).as_deref(), Some("system.slice/containerd.service"));
    for path in ["/user.slice", "/system.slice/podman.service", "/../x", &format!("/system.slice/docker-{id}.scope")] {
        assert_eq!(misplaced(&top, path), None, "{path}");
    }
}
