//! The references of a Checkpoint's images.

/// Longest `spec.image`: room is left for a container's name.
pub const MAX_LENGTH: usize = 255;

/// The reference of a container's image: `image` itself where one container is frozen; where there are several,
/// each has a repository of its own, `REPOSITORY-CONTAINER:TAG`.
#[must_use]
pub fn reference(image: &str, container: &str, alone: bool) -> String {
    if alone {
        return image.to_owned();
    }
    let name = image.rfind('/').map_or(0, |slash| slash + 1);
    match image[name..].find(':') {
        Some(colon) => {
            let (repository, tag) = image.split_at(name + colon);
            format!("{repository}-{container}{tag}")
        }
        None => format!("{image}-{container}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_container_has_the_image_itself_and_several_a_repository_each() {
        assert_eq!(reference("r.example/shop/web:warm", "app", true), "r.example/shop/web:warm");
        assert_eq!(reference("r.example/shop/web:warm", "app", false), "r.example/shop/web-app:warm");
        assert_eq!(reference("localhost:5000/web", "app", false), "localhost:5000/web-app");
        assert_eq!(reference("localhost:5000/a/b:v1", "c", false), "localhost:5000/a/b-c:v1");
    }
}
