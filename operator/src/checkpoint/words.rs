//! What is said of a Checkpoint: the agent's words in the Checkpoint's, and numbers for people.

use woodfrog_api::conditions::CheckpointReason;
use woodfrog_api::{AgentPhase, AgentStatus, FrozenContainer, PastImage, PushedImage, Summary};

/// The agent's reason in the Checkpoint's words.
pub(super) fn reason(agent: &AgentStatus) -> CheckpointReason {
    match agent.reason.as_deref().unwrap_or_default() {
        "WarmUpRequest" => CheckpointReason::WarmUpRequestFailed,
        "WarmUpCommand" => CheckpointReason::WarmUpCommandFailed,
        "WarmUpTimeout" => CheckpointReason::WarmUpTimedOut,
        "Secret" => CheckpointReason::SecretNotFound,
        "Hook" => CheckpointReason::HookFailed,
        "Preflight" => CheckpointReason::PreflightFailed,
        _ if agent.phase == AgentPhase::Failed && agent.bytes_total.is_some() => CheckpointReason::PushFailed,
        "Unreachable" | "Unauthorized" | "Denied" | "ImageReference" | "Registry" | "NotFound"
        | "Timeout" => CheckpointReason::PushFailed,
        _ => CheckpointReason::FreezeFailed,
    }
}

/// The agent's words in one line.
pub(super) fn said(agent: &AgentStatus) -> String {
    let message = agent.message.clone().unwrap_or_else(|| "the node agent does not say why".into());
    agent.details.iter().take(4).fold(message, |all, detail| {
        if all.contains(detail.as_str()) { all } else { format!("{all}; {detail}") }
    })
}

/// What is kept in mind of an image that has been replaced.
pub(super) fn past_image(container: &FrozenContainer) -> PastImage {
    PastImage {
        name: container.name.clone(),
        image: container.image.clone(),
        digest: container.digest.clone(),
        compressed_bytes: container.compressed_bytes,
        frozen_at: container.frozen_at.clone(),
        unfinished: false,
    }
}

/// The same of one of which nobody knows yet whether it will be an image of the Checkpoint.
pub(super) fn unfinished(pushed: &PushedImage) -> PastImage {
    PastImage {
        name: pushed.name.clone(),
        image: pushed.image.clone(),
        digest: pushed.digest.clone(),
        compressed_bytes: 0,
        frozen_at: None,
        unfinished: true,
    }
}

/// How large and how fast.
pub(super) fn summary(containers: &[FrozenContainer]) -> Summary {
    let bytes = containers.iter().map(|c| c.compressed_bytes).sum();
    let longest = containers.iter().map(|c| c.freeze_ms).max().unwrap_or(0);
    Summary { size: Some(mebibytes(bytes)), freeze: Some(format!("{longest} ms")), progress: None }
}

/// How far the agent is with the bytes of its phase.
pub(super) fn progress(agent: &AgentStatus) -> Option<String> {
    let (done, rate) = (agent.bytes_done?, agent.bytes_per_second.unwrap_or(0));
    Some(match agent.bytes_total {
        Some(total) if total > 0 => format!("{}% ({}/s)", done * 100 / total, mebibytes(rate)),
        _ => format!("{} ({}/s)", mebibytes(done), mebibytes(rate)),
    })
}

fn mebibytes(bytes: i64) -> String {
    match bytes {
        ..10_485_760 => format!("{:.1} MiB", bytes as f64 / f64::from(1 << 20)),
        _ => format!("{} MiB", bytes >> 20),
    }
}
